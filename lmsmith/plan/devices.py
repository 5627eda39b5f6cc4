"""The table of accelerators, `--device here` (this machine, measured), and the user's own devices.

`devices.toml` gives each device's peaks by precision, memory, bandwidth and price, with sources and
dates. The file that `LMSMITH_DEVICES` names, or ~/.config/lmsmith/devices.toml, adds devices and
replaces fields of known ones. A price grows old: `stale` says after 180 days.
"""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmsmith.errors import ConfigError
from lmsmith.plan.calibrate import Timer, calibration
from lmsmith.plan.here import Measured, measured

STALE_DAYS = 180
HERE = "here"
_TABLE = Path(__file__).with_name("devices.toml")
_FIELDS = ("peaks", "memory", "bandwidth", "link", "watts", "price")


@dataclass(frozen=True)
class Device:
    """One accelerator, in base units: FLOP/s by precision, bytes, bytes/s, watts, dollars/hour.

    `price` 0: unknown. `source` was read on the day `checked`; `verified`: it states every figure.
    `measured`: speeds of this machine, by measurement instead of peaks.
    """

    key: str
    name: str
    peaks: dict[str, float]
    memory: float
    bandwidth: float
    link: float = 0.0
    watts: float = 0.0
    price: float = 0.0
    price_source: str = ""
    price_date: datetime.date | None = None
    source: str = ""
    checked: datetime.date | None = None
    verified: bool = False
    gpu: bool = True
    measured: Measured | None = field(default=None, repr=False)

    def peak(self, dtype: str) -> float:
        """FLOP/s in a precision; the next wider one that the device has."""
        order = ("float8", "float16", "bfloat16", "tf32", "float32", "float64")
        if dtype in self.peaks:
            return self.peaks[dtype]
        start = order.index(dtype) if dtype in order else 4
        wider = [self.peaks[name] for name in order[start:] if name in self.peaks]
        return wider[0] if wider else min(self.peaks.values()) / (64 if dtype == "float64" else 1)

    @property
    def usual_dtype(self) -> str:
        """The precision that training would choose."""
        return next((name for name in ("bfloat16", "float16") if name in self.peaks), "float32")

    def stale(self, today: datetime.date | None = None) -> str:
        """A warning if the price is old; else ""."""
        today = today or datetime.date.today()
        if not self.price or self.price_date is None:
            return ""
        days = (today - self.price_date).days
        if days <= STALE_DAYS:
            return ""
        return (
            f"the price of {self.name}, ${self.price:g} per hour ({self.price_source}), is from "
            f"{self.price_date}, {days} days ago: give today's with --price"
        )


def device(name: str, price: float | None = None, timer: Timer | None = None) -> Device:
    """The device of this name; `price` (dollars per hour) replaces the table's. `timer` measures
    steps here, if this machine's speeds are not kept.

    Raises ConfigError for an unknown device, naming the nearest, and for a negative price.
    """
    if price is not None and not 0 <= price < float("inf"):
        raise ConfigError(f"price = {price:g}: expected 0 or more dollars per hour.")
    if name == HERE:
        found = of_machine(measured(calibration(timer) if timer else None))
    else:
        known = devices()
        if name not in known:
            raise ConfigError(_unknown(name, known))
        found = known[name]
    if price is None:
        return found
    return dataclasses.replace(
        found, price=price, price_source="--price", price_date=datetime.date.today()
    )


def devices() -> dict[str, Device]:
    """All devices of the table and of the user's file, by name. Raises ConfigError."""
    tables = tomllib.loads(_TABLE.read_text(encoding="utf-8"))
    path = _users_file()
    if path is not None:
        try:
            own = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"cannot read the devices of {path}: {error}. Correct the file."
            ) from error
        for key, entry in own.items():
            if not isinstance(entry, dict):
                raise ConfigError(f"{path}: {key} = {entry!r}: expected a table, as in [{key}].")
            tables[key] = {**tables.get(key, {}), **entry}
    return {key: _checked(key, entry, path or _TABLE) for key, entry in tables.items()}


def _users_file() -> Path | None:
    named = os.environ.get("LMSMITH_DEVICES")
    if named:
        return Path(named)
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    path = home / "lmsmith" / "devices.toml"
    return path if path.exists() else None


def _checked(key: str, entry: Mapping[str, Any], path: Path) -> Device:
    known = {field.name for field in dataclasses.fields(Device)} - {"key", "measured"}
    for name in entry:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{path}: unknown field {key}.{name}.{hint}")
    for name in ("peaks", "memory", "bandwidth"):
        if name not in entry:
            raise ConfigError(f"{path}: {key} has no {name}. Add it, as in {_TABLE}.")
    numbers = {name: entry[name] for name in _FIELDS if name in entry and name != "peaks"}
    peaks = entry["peaks"]
    if not isinstance(peaks, Mapping) or not peaks:
        raise ConfigError(f"{path}: {key}.peaks = {peaks!r}: expected {{ float32 = TFLOP/s }}.")
    for name, value in [*numbers.items(), *((f"peaks.{n}", v) for n, v in peaks.items())]:
        least = "0 or more" if name in ("price", "watts", "link") else "more than 0"
        good = isinstance(value, int | float) and not isinstance(value, bool)
        if not good or value < 0 or (value == 0 and least != "0 or more"):
            raise ConfigError(f"{path}: {key}.{name} = {value!r}: expected a number, {least}.")
    for name in ("price_date", "checked"):
        date = entry.get(name)
        if date is not None and not isinstance(date, datetime.date):
            raise ConfigError(f"{path}: {key}.{name} = {date!r}: expected a date: 2026-01-31.")
    giga = {name: value * 1e9 for name, value in numbers.items() if name not in ("watts", "price")}
    return Device(
        key=key,
        name=str(entry.get("name", key)),
        peaks={name: value * 1e12 for name, value in peaks.items()},
        **{**numbers, **giga},
        price_source=str(entry.get("price_source", "")),
        price_date=entry.get("price_date"),
        source=str(entry.get("source", "")),
        checked=entry.get("checked"),
        verified=bool(entry.get("verified", False)),
        gpu=bool(entry.get("gpu", True)),
    )


def _unknown(name: str, known: Mapping[str, Device]) -> str:
    folded = {key.replace("-", ""): key for key in known}
    word = name.lower().replace("-", "").replace("_", "").replace(" ", "").replace("nvidia", "")
    near = [each for each in folded if word and each.startswith(word)]
    near += difflib.get_close_matches(word, folded, n=1, cutoff=0.5)
    hint = f" Did you mean {folded[near[0]]!r}?" if near else ""
    return (
        f"there is no device {name!r}.{hint} Known: {', '.join(known)}, and here (this machine). "
        "The file that LMSMITH_DEVICES names can add others."
    )


def of_machine(found: Measured) -> Device:
    """This machine as a device, from its measured speeds."""
    return Device(
        key=HERE,
        name=found.name,
        peaks=dict(found.products),
        memory=found.memory,
        bandwidth=found.copy,
        source=f"measured on {found.date}",
        gpu=False,
        measured=found,
    )
