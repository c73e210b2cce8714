"""Contributor-level DP-SGD with confide: every patient is protected, however many visits they have."""

import torch
from torch import nn
from torch.utils.data import TensorDataset

from confide import ContributorDataset, PrivateRun, plan
from confide.data import load

STEPS = 150
visits = load("pbcseq").select("id", "status", "age", "bili", "albumin", "protime").drop_nulls()
low, high = torch.tensor([20.0, 0.0, 1.0, 8.0]), torch.tensor([80.0, 40.0, 6.0, 40.0])  # declared, not looked up
x = visits.select("age", "bili", "albumin", "protime").to_torch(dtype=None).float()
x = (x.clamp(low, high) - low) / (high - low)
y = (visits["status"] == 2).to_torch().float()
dataset = ContributorDataset(TensorDataset(x, y), contributors=visits["id"].cast(str).to_list())

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
criterion = nn.BCEWithLogitsLoss(reduction="none")
optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
policy = plan(epsilon=4, delta=1e-5, noise_multiplier=1.0, steps=STEPS, max_entries=16, max_contributors=400)
run = PrivateRun(model, lambda out, t: criterion(out.squeeze(1), t), optimizer, policy, dataset)

for batch in run:
    loss = criterion(model(batch.inputs).squeeze(1), batch.targets)
    run.step(loss)

print(f"epsilon {max(c.epsilon for c in policy.classes):.2f} per patient")
