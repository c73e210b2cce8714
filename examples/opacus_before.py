"""Per-entry DP-SGD with Opacus: every visit is protected as if it were a person of its own."""

import torch
from opacus import PrivacyEngine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from confide.data import load

EPOCHS, BATCH = 5, 64
visits = load("pbcseq").select("id", "status", "age", "bili", "albumin", "protime").drop_nulls()
low, high = torch.tensor([20.0, 0.0, 1.0, 8.0]), torch.tensor([80.0, 40.0, 6.0, 40.0])  # declared, not looked up
x = visits.select("age", "bili", "albumin", "protime").to_torch(dtype=None).float()
x = (x.clamp(low, high) - low) / (high - low)
y = (visits["status"] == 2).to_torch().float()
dataset = TensorDataset(x, y)

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
criterion = nn.BCEWithLogitsLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
loader = DataLoader(dataset, batch_size=BATCH, shuffle=True)
engine = PrivacyEngine()
model, optimizer, loader = engine.make_private(
    module=model, optimizer=optimizer, data_loader=loader, noise_multiplier=1.0, max_grad_norm=1.0
)

for _epoch in range(EPOCHS):
    for inputs, targets in loader:
        optimizer.zero_grad()
        loss = criterion(model(inputs).squeeze(1), targets)
        loss.backward()
        optimizer.step()

print(f"epsilon {engine.get_epsilon(delta=1e-5):.2f} per visit")
