"""Acts on the cluster: watches, queues, leader election, reconcilers, scaler. What it decides is in ../control.

API server ──list, watch──▶ reflector ──▶ Store ──owner's key──▶ queues ──▶ workers
    ▲                                       │                               │
    └── gate: only while we lead ◀── Api ◀──┴── runs, models, scaler ◀──────┘
"""
