"""Measuring instruments for pictures of the small base model, used by benchmarks and tests.

A claim such as "the LoRA learned the subject and forgot nothing" becomes a number: `classifier` reads thing, colour and
background of a picture, `detector` says whether a subject is in it, `diversity` how much pictures differ, and `scores`
compares them with what prompts asked for. The networks are trained on pictures drawn for it, in about a minute each,
and kept in the cache; `accuracy` of each says on unseen drawings how far to trust it.
"""
