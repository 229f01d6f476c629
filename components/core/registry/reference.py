"""What stands in the place of the training screen where new plates are predicted: a manifest made from a model. Pure.

It has the vocabulary, the training plates with their histograms and without wells, and beside the networks' address what
the labels taught assign: the plate design and the temperatures. So no label of a training well is needed, nor its image.
"""

from __future__ import annotations

from collections.abc import Sequence

from components.core.config import PackConfig
from components.core.registry.model_manifest import ModelManifest, TrainedPlate
from components.core.storage.manifest import Manifest, PlateRecord, ReferenceModel


def reference_of(
    model: ModelManifest, plates: Sequence[TrainedPlate], address: str, store: str, codec: PackConfig, run: str = ""
) -> Manifest:
    """The manifest.

    Args:
        model: the model that predicts.
        plates: those that its networks saw.
        address: where it is published.
        store: address of the store that new plates go to.
        codec: how they are packed.
        run: key of the run that packs them, under which finished folds are listed; may be empty.
    """
    return Manifest(
        store=store,
        channels=model.channels,
        image_size=model.image_size,
        codec=codec,
        vocabulary=model.vocabulary,
        folds={},
        plates=tuple(
            PlateRecord(
                experiment=plate.experiment,
                plate=plate.plate,
                cell_type=plate.cell_type,
                labelled=plate.labelled,
                prefix="",
                histograms=plate.histograms,
                wells=(),
            )
            for plate in plates
        ),
        run=run,
        model=ReferenceModel(
            fingerprint=model.fingerprint, address=address, design=model.design, temperatures=model.temperatures
        ),
    )
