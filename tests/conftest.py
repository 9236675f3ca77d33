"""What holds for all tests."""

from __future__ import annotations

from hypothesis import settings

# An example that takes long says that the machine is busy, not that the code is wrong: pytest-timeout ends what hangs.
settings.register_profile("sheaf", deadline=None)
settings.load_profile("sheaf")
