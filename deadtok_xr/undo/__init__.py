"""Undo the last update of a parameter, to find which of its values changed without a copy of them.

In: a parameter of a training loop and its optimizer, after a step. Out: a mask. The state of Adam, AdamW and SGD with
momentum after an update holds what the update was computed from, so that the old values are known up to rounding.

changed_mask   the public function: checks, tiles
last_update    what the optimizer did to the parameter: rule, settings, step, learning rate, state
forward        bfloat16 parameters: which neighbouring values lead to the same new value, with torch's own operations
bounds         float32 parameters and fused arithmetic: bounds of the old values, by the errors of the operations

It imports `replay`, `recorder` (what a loop may pass as an optimizer) and `errors`.
"""
