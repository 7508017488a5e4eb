"""Class activation maps of a classifier, and boxes from them (DAP, https://arxiv.org/abs/2103.16651)."""
