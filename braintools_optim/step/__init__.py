"""The pure step: the stages of an update in order, the rule among them, and the optimizer state. It knows no States."""
