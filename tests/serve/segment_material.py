"""Lines of a plan that make a training on small volumes a matter of seconds."""

QUICK = {
    "optim.max_steps": 16,
    "optim.batch_size": 2,
    "optim.precision": "fp32",
    "optim.lr": 0.01,
    "model.patch": [16, 16, 16],
    "model.features": [4, 8],
    "model.strides": [[1, 1, 1], [2, 2, 2]],
    "predict.views": [[]],
    "predict.backend": "torch",
    "validate.every": 4,
}
