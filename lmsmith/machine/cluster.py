"""Connects to a Ray cluster: the one this program is connected to, or the one on this machine."""

from __future__ import annotations

from typing import Any

from lmsmith.errors import ConfigError


def connected_ray(without: str) -> Any:
    """The package ray, connected. `without`: the `--engine` that needs no cluster, for the message.

    Raises ConfigError if Ray is not installed or no cluster is running.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "--engine ray needs the package ray: `pip install 'lmsmith[ray]'`."
        ) from error
    if not ray.is_initialized():
        try:
            ray.init(address="auto", log_to_driver=False)
        except ConnectionError as error:
            raise ConfigError(
                "--engine ray: no Ray cluster is running here. `ray start --head` starts one on "
                "this machine and prints the command for others to join it. Without a cluster, "
                f"use --engine {without}."
            ) from error
    return ray
