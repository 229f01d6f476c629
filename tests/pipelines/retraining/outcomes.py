"""Outcomes of retrainings that nobody did. For tests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from pipelines.retraining.fingerprint import Fingerprint
from pipelines.retraining.records import Outcome

DAY = datetime(2026, 1, 2, tzinfo=UTC)


def outcome(sources: str, looked: datetime) -> Outcome:
    fingerprint = Fingerprint(tables={}, experiments={}, files={}, sources=sources, images={}, config={})
    return Outcome(
        name="tiny", fingerprint=fingerprint, run=f"tiny-{sources}", model="a" * 64, champion=None, generation=1,
        promoted=True, reason="better", looked=looked, at=DAY + timedelta(days=9), by="somebody",
    )  # fmt: skip
