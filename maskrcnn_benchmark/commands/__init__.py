"""The parts of the command ``mrb`` that are more than a page each."""
