"""What can go wrong in distributed attention, one class each."""


class ShapeError(ValueError):
    """Tensors do not fit each other or the plan."""


class CapabilityError(ValueError):
    """Nobody can serve what was asked for; the message lists who was asked and why they cannot."""


class PlanMismatch(ValueError):
    """Ranks came with different plans, shapes or dtypes. Raised on every rank before anything else is sent."""


class DistTimeout(RuntimeError):
    """Messages did not arrive in time; the message names the operation."""
