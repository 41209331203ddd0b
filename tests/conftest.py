"""Settings of the whole suite."""

import torch

torch.set_num_threads(1)  # tensors here are tiny: more threads only wait for each other
