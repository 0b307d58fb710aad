"""A small Stable Diffusion 1.5, made from nothing, on which learning is visible.

No weights can be downloaded by a test or in the first minute of a demo, and random weights teach nobody anything.
So this package draws captioned pictures (`scenes`, `drawing`), pretrains the real SD 1.5 topology at small widths on
them (`models`, `train_vae`, `train_unet`), writes one single-file checkpoint (`export`) and draws a new subject for a
LoRA to learn (`subject`). The result is shipped as `examples/base-model/tiny-sd15.safetensors`.
"""
