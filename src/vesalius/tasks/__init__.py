"""Floor 3: one file per question (classify, later segment, detect...): target, head, loss, decode."""
