"""Rendered surfaces against closed formulas: areas of shadows, order in depth, sides of the patient."""

import numpy as np
import pytest
from skimage.measure import marching_cubes

from vesalius.report.rendering import VIEWS, calibre_colours, camera, render, tube

RED, GREEN, BLUE = (0.9, 0.1, 0.1), (0.1, 0.9, 0.1), (0.1, 0.1, 0.9)


def sphere(centre=(0, 0, 0), radius=10.0, count=48):
    """A ball of latitudes and longitudes."""
    up, turn = np.meshgrid(
        np.linspace(0, np.pi, count), np.linspace(0, 2 * np.pi, 2 * count, endpoint=False), indexing="ij"
    )
    points = np.stack([np.sin(up) * np.cos(turn), np.sin(up) * np.sin(turn), np.cos(up)], -1).reshape(-1, 3)
    row, column = (grid.ravel() for grid in np.meshgrid(range(count - 1), range(2 * count), indexing="ij"))
    a, b = row * 2 * count + column, row * 2 * count + (column + 1) % (2 * count)
    faces = np.concatenate([np.stack([a, a + 2 * count, b], 1), np.stack([b, a + 2 * count, b + 2 * count], 1)])
    return points * radius + np.array(centre), faces


def inked(picture):
    return (picture.astype(int).sum(2) < 3 * 255 - 12) if picture.mean() > 100 else picture.any(2)


def strongest(picture, channel):
    """Mean place (row, column) of the pixels where one channel leads by far."""
    others = np.delete(picture.astype(int), channel, axis=2).max(2)
    return np.argwhere(picture[..., channel].astype(int) - others > 60).mean(0)


@pytest.mark.parametrize("view", list(VIEWS))
def test_a_ball_covers_its_circle(view):
    picture = render([(*sphere(), RED)], (300, 260), view, mm_per_pixel=0.1)
    assert picture.shape == (260, 300, 3)
    assert picture.dtype == np.uint8
    # Pixels on the rim are a quarter, a half... covered.
    cover = np.where(inked(picture), 1.0, 0.0).sum() * 0.01
    assert cover == pytest.approx(np.pi * 100, rel=0.01)


def test_a_ball_of_voxels_covers_its_circle():
    z, y, x = np.mgrid[-25:26, -25:26, -25:26]
    vertices, faces, _, _ = marching_cubes(20.5 - np.sqrt(z**2 + y**2 + x**2), 0.0)
    picture = render([(vertices, faces, RED)], (200, 200), mm_per_pixel=0.25)
    assert inked(picture).sum() / 16 == pytest.approx(np.pi * 20.5**2, rel=0.01)


@pytest.mark.parametrize(
    ("view", "right", "up"),
    [
        ("anterior", (1, 0, 0), (0, 0, 1)),  # the patient's left is on the right of the picture
        ("posterior", (-1, 0, 0), (0, 0, 1)),
        ("left", (0, 1, 0), (0, 0, 1)),  # seen from the left, posterior is on the right
        ("right", (0, -1, 0), (0, 0, 1)),
        ("superior", (-1, 0, 0), (0, -1, 0)),
        ("inferior", (1, 0, 0), (0, -1, 0)),
    ],
)
def test_sides_of_the_patient(view, right, up):
    right, up = np.array(right), np.array(up)
    np.testing.assert_allclose(camera(view)[:2], [right, up], atol=1e-12)
    balls = [
        (*sphere(), BLUE),
        (*sphere(30 * right, 5), RED),
        (*sphere(30 * up, 5), GREEN),
    ]
    picture = render(balls, (200, 200), view)
    middle, red, green = (strongest(picture, channel) for channel in (2, 0, 1))
    assert red[1] > middle[1] + 30
    assert green[0] < middle[0] - 30


@pytest.mark.parametrize("view", list(VIEWS))
def test_the_nearer_one_is_in_front(view):
    away = camera(view)[2]
    balls = [(*sphere(20 * away, 8), GREEN), (*sphere(-20 * away, 8), RED)]
    for order in (balls, balls[::-1]):
        picture = render(order, (80, 80), view)
        assert picture[40, 40, 0] > 2 * picture[40, 40, 1]


def test_transparent_structures_let_others_through():
    shell, kernel = sphere(radius=20), sphere(radius=5)
    closed = render([(*kernel, RED), (*shell, BLUE)], (100, 100))
    opened = render([(*kernel, RED), (*shell, (*BLUE, 0.3))], (100, 100))
    assert closed[50, 50, 2] > closed[50, 50, 0]
    assert opened[50, 50, 0] > opened[50, 50, 2]
    assert opened[50, 20, 2] > opened[50, 20, 0]
    behind = render(
        [(*sphere((0, 40, 0), 5), RED), (*shell, (*BLUE, 0.3)), (*sphere((0, -40, 0), 3), GREEN)], (100, 100)
    )
    assert behind[50, 50, 1] > 2 * behind[50, 50, 2]  # nothing lies over what is in front
    assert inked(opened).sum() == inked(closed).sum()


def test_light_comes_from_above_left():
    picture = render([(*sphere(), (0.6, 0.6, 0.6))], (101, 101), background="black").astype(int)
    rows, columns = np.nonzero(inked(picture))
    grey = picture[rows, columns].mean(1)
    assert np.corrcoef(grey, -rows)[0, 1] > 0.4
    assert np.corrcoef(grey, -columns)[0, 1] > 0.2


def test_hollows_are_darker():
    # A plate with a pit: the middle of the pit lies deep, with the rim nearer.
    y, x = np.mgrid[-40:41, -40:41]
    depth = np.where(np.hypot(y, x) < 12, 20.0, 0.0)
    vertices = np.stack([x, depth, y], -1).reshape(-1, 3).astype(float)
    a = (np.arange(80)[:, None] * 81 + np.arange(80)).ravel()
    faces = np.concatenate([np.stack([a, a + 1, a + 81], 1), np.stack([a + 1, a + 82, a + 81], 1)])
    plain, dark = (render([(vertices, faces, (0.7,) * 3)], (160, 160), occlusion=o).astype(int) for o in (0, 1))
    assert dark[80, 80 - 18].sum() < plain[80, 80 - 18].sum()
    assert abs(dark[80, 150] - plain[80, 150]).max() <= 2


def test_background_letters_and_bar():
    ball = [(*sphere(), RED)]
    for name, value in (("white", 255), ("black", 0)):
        assert (render(ball, (60, 60), background=name)[0, 0] == value).all()
    assert render([], (20, 10), background=(0.5, 0.5, 0.5))[5, 5].tolist() == [128] * 3
    bare, told = render(ball, (200, 200)), render(ball, (200, 200), letters=True, scale_bar=True)
    changed = np.argwhere((bare != told).any(2))
    assert len(changed) > 50
    # Bar of 5 mm at 0.112 mm per pixel.
    bar = (render(ball, (200, 200), mm_per_pixel=0.2, scale_bar=True) == 30).all(2)
    assert bar.sum(1).max() == pytest.approx(5 / 0.2, abs=2)


def test_a_tube_has_its_width_and_length():
    line = np.stack([np.zeros(40), np.zeros(40), np.linspace(-30, 30, 40)], 1)
    picture = render([tube(line, 4.0, sides=64)], (200, 200), mm_per_pixel=0.4)
    mask = inked(picture)
    assert mask.sum() * 0.16 == pytest.approx(60 * 8 + np.pi * 16, rel=0.02)
    assert mask[100].sum() * 0.4 == pytest.approx(8, abs=0.8)
    turn = np.linspace(0, 4 * np.pi, 200)
    coil = np.stack([10 * np.cos(turn), 10 * np.sin(turn), 2 * turn], 1)
    vertices, faces, _ = tube(coil, 1.0, sides=24)
    corners = vertices[faces]
    volume = abs(np.einsum("fi,fi->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2]))) / 6
    length = np.linalg.norm(np.diff(coil, axis=0), axis=1).sum()
    assert volume == pytest.approx(np.pi * length + 4 / 3 * np.pi, rel=0.03)  # Pappus; a closed surface
    single = render([tube([(0, 0, 0)], 5.0)], (100, 100), mm_per_pixel=0.2)
    assert inked(single).sum() * 0.04 == pytest.approx(np.pi * 25, rel=0.04)


def test_calibres_go_from_violet_to_yellow():
    colours = calibre_colours([1, 2, 3])
    assert colours[0, 2] > colours[0, 1]
    assert colours[2, 0] > 0.9
    np.testing.assert_allclose(calibre_colours([2, 2]), calibre_colours([2.0], 0, 4).repeat(2, 0))
    wide, thin = (tube([(0, 0, 0), (0, 0, 9)], [2, 1], calibre_colours([2, 1])) for _ in range(2))
    assert render([wide], (50, 50)).tobytes() == render([thin], (50, 50)).tobytes()


def test_faces_may_turn_either_way_and_leave_the_picture():
    vertices, faces = sphere()
    one, other = (render([(vertices, f, RED)], (80, 80)) for f in (faces, faces[:, ::-1]))
    np.testing.assert_allclose(one.astype(int), other.astype(int), atol=2)
    close = render([(vertices, faces, RED)], (40, 40), mm_per_pixel=0.1)
    assert inked(close).all()
    moved = render([(vertices + 500, faces, RED)], (80, 80))
    np.testing.assert_allclose(one.astype(int), moved.astype(int), atol=2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: render([(*sphere(), RED)], (0, 5)), "size"),
        (lambda: render([(*sphere(), RED)], view="above"), "view"),
        (lambda: render([(*sphere(), RED)], view=((0, 0, 1), (0, 0, 2))), "direction"),
        (lambda: render([(*sphere(), (2, 0, 0))]), "colour"),
        (lambda: render([(np.zeros((2, 3)), [[0, 1, 2]], RED)]), "faces"),
        (lambda: render([(np.full((3, 3), np.nan), [[0, 1, 2]], RED)]), "vertices"),
        (lambda: render([], background="pink"), "background"),
        (lambda: render([], mm_per_pixel=0), "mm_per_pixel"),
        (lambda: tube(np.zeros((0, 3)), 1), "point"),
    ],
)
def test_bad_arguments(call, words):
    with pytest.raises(ValueError, match=words):
        call()
