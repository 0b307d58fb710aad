"""Measuring instruments for pictures of the small base model, used by benchmarks and tests.

A claim such as "the LoRA learned the subject and forgot nothing" becomes a number: `classifier` reads thing, colours
and background of a picture, `detector` says whether a subject is in it, `diversity` how much pictures differ, and
`scores` compares them with what prompts asked for. `networks` trains the two of these that learn, on pictures drawn
for it, in about a minute each, and keeps them in the cache; `scores` also says on unseen drawings how far to trust
them. `painting` makes the pictures, and `trainings` runs the trainer whose LoRA they are painted with.
"""
