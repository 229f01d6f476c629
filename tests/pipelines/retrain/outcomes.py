"""Made-up outcomes of retrainings."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from pipelines.retrain.fingerprint import Fingerprint
from pipelines.retrain.records import RetrainingOutcome

DAY = datetime(2026, 1, 2, tzinfo=UTC)


def outcome(sources: str, looked: datetime) -> RetrainingOutcome:
    fingerprint = Fingerprint(tables={}, experiments={}, files={}, sources=sources, images={}, config={})
    return RetrainingOutcome(
        name="tiny", fingerprint=fingerprint, run=f"tiny-{sources}", model="a" * 64, champion=None, generation=1,
        promoted=True, reason="better", looked=looked, at=DAY + timedelta(days=9), by="somebody",
    )  # fmt: skip
