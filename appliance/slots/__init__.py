"""Which engine runs where: memory ledger, planner, eviction, and the scheduler that owns slots.

The scheduler is the one writer of slot state. Everyone else holds leases, reads snapshots and
listens to events."""
