"""Learns handwritten digits without training a weight: random ones stay, and scores choose which of them to use."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import edgepop_kernels as ek

torch.manual_seed(0)
images, labels = (torch.from_numpy(a) for a in load_digits(return_X_y=True))  # 1,797 of 8x8
images = images.float() / 16
model = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
ek.convert(model, keep=0.1, init="signed_constant", scale="paper")
optimizer = ek.optim.ScoreSGD(model, lr=0.1, momentum=0.9)
for _ in range(20):
    for batch in torch.randperm(1437).split(64):
        optimizer.zero_grad()
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()

print(ek.summary(model))
right = model(images[1437:]).argmax(1) == labels[1437:]
print(f"{right.float().mean():.1%} of 360 images right that it has not seen")
