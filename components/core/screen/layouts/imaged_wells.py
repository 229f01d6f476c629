"""Joins the wells of a plate map and the images of their sites."""

from __future__ import annotations

from collections import Counter

import pandas as pd

from components.core.screen.layouts.plate_names import match_plates
from components.core.screen.layouts.reading import KEY, Reading, fill_channels


def _one_experiment_a_well(reading: Reading, wells: pd.DataFrame, images: pd.DataFrame) -> pd.DataFrame:
    """The first row of each imaged well; refuses plates that the map has in several experiments, whose images say none."""
    imaged = wells[KEY[1:]].merge(images[KEY[1:]].drop_duplicates(), how="left", indicator=True)["_merge"] == "both"
    shared = wells.duplicated(KEY[1:], keep=False) & imaged.to_numpy()
    names = wells[shared].groupby("plate", sort=False)["experiment"].unique()
    places = [f"plate {plate}: {', '.join(found)}" for plate, found in names.items() if len(found) > 1]
    if places:
        reading.missing = True
        reading.refuse(
            "the plate map has a plate in several experiments, and the folders of the images do not say which: name the folders "
            "EXPERIMENT/PLATE, or cut the map to the imaged experiment",
            places,
        )
        wells = wells[~shared | ~wells.duplicated(KEY[1:])]
    return wells


def join_wells(reading: Reading, sites: pd.DataFrame, wells: pd.DataFrame, plates: pd.DataFrame) -> pd.DataFrame:
    """A row a site with what the plate map says of its well; wells of the map without images have a row with site 0.

    Imaged wells that the map does not list are refused; blank ones of a drawn map without images are left out.

    Args:
        reading: receives findings.
        sites: with the columns experiment (empty if the images do not say it), plate, well, site and the channels'.
        wells: from a plate map; without experiment or plate a row holds for all.
        plates: the imaged plates, columns experiment and plate.
    """
    wells, shared = match_plates(reading, wells, plates)
    whole = wells
    # Experiments of a map whose plates are each in one folder, of another name, are the map's: they may split a plate.
    theirs = {*wells["experiment"]} - {""}
    if theirs and theirs.isdisjoint(plates["experiment"]) and not plates["plate"].duplicated().any():
        sites, plates = sites.assign(experiment=""), plates.assign(experiment="")
    if len(wells) and (wells["plate"] == "").all():
        whole = wells.drop(columns=["plate"]).merge(plates[["plate"]].drop_duplicates(), how="cross")
    if (plates["experiment"] != "").any() and len(whole) and (whole["experiment"] == "").all():
        whole = whole.drop(columns=["experiment"]).merge(plates.drop_duplicates(), on="plate")
    key = KEY if (plates["experiment"] != "").any() else KEY[1:]
    sites = sites if shared else sites.iloc[:0]
    images = sites if key == KEY else sites.drop(columns=["experiment"])
    whole = whole if key == KEY else _one_experiment_a_well(reading, whole, images)
    merged = whole.merge(images, on=key, how="outer", indicator=True)
    lacking = merged["_merge"] == "right_only"
    if lacking.any():
        names = merged[lacking].drop_duplicates(key)
        imaged = Counter(images.drop_duplicates(key)[key[:-1]].itertuples(index=False, name=None))
        places = []
        for group, of_plate in names.groupby(key[:-1], sort=False):
            plate = tuple(map(str, group))
            plate_name = "_".join(plate)
            if len(of_plate) == imaged[plate] > 1:
                places.append(f"all {len(of_plate)} wells of {plate_name}")
            else:
                places += [f"{plate_name}_{well}" for well in of_plate["well"]]
        reading.refuse(
            f"the plate map lacks {len(names)} imaged well{'s' if len(names) > 1 else ''}: add them to it, with a role that is "
            "neither treatment nor control if they are to be left out",
            places,
        )
    if "blank" in merged.columns:
        lacking |= (merged["_merge"] == "left_only") & merged.pop("blank").eq(True)
    merged = merged[~lacking & merged["role"].notna()].drop(columns=["_merge"]).reset_index(drop=True)
    merged["site"] = merged["site"].fillna(0).astype(int)
    fill_channels(merged)
    for column in ("file", "line"):
        merged[column] = merged[column].astype(int)
    return merged
