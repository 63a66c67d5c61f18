"""Paths of the config file made absolute: they are relative to it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

import msgspec

from proxy.config.control import ControlConfig
from proxy.config.engines import EngineConfig
from proxy.config.table import Table
from proxy.config.whole import Config

_AnyTable = TypeVar("_AnyTable", bound=Table)


def with_paths(config: Config, path: Path) -> Config:
    """All paths absolute; an empty `runtime_dir` gets its default."""
    folder = path.absolute().parent
    state_file = folder / config.state_file
    if config.runtime_dir:
        runtime = folder / config.runtime_dir
    elif base := os.environ.get("XDG_RUNTIME_DIR"):
        runtime = Path(base) / "turnout"
    else:
        runtime = state_file.parent / f"{state_file.stem}.run"
    replace = msgspec.structs.replace
    return replace(
        config,
        state_file=str(state_file),
        runtime_dir=str(runtime),
        control=_with_control_paths(config.control, folder),
        alerts=replace(
            config.alerts,
            receiver={
                name: replace(one, ca_file=str(folder / one.ca_file)) if one.ca_file else one
                for name, one in config.alerts.receiver.items()
            },
        ),
        telemetry=replace(config.telemetry, ca_file=str(folder / config.telemetry.ca_file))
        if config.telemetry.ca_file
        else config.telemetry,
        listener=[_with_tls_paths(one, folder) for one in config.listener],
        service={
            name: replace(
                service,
                engine={
                    key: _with_load_path(_with_tls_paths(one, folder), folder) for key, one in service.engine.items()
                },
            )
            for name, service in config.service.items()
        },
    )


def _with_load_path(engine: EngineConfig, folder: Path) -> EngineConfig:
    if not engine.load.pid_file:
        return engine
    replace = msgspec.structs.replace
    return replace(engine, load=replace(engine.load, pid_file=str(folder / engine.load.pid_file)))


def _with_control_paths(control: ControlConfig, folder: Path) -> ControlConfig:
    replace = msgspec.structs.replace
    jwt = control.jwt
    if jwt is not None and jwt.jwks_file:
        jwt = replace(jwt, jwks_file=str(folder / jwt.jwks_file))
    keys = ("tls_cert_file", "tls_key_file", "tls_ca_file")
    return replace(control, jwt=jwt, **{key: str(folder / name) for key in keys if (name := getattr(control, key))})


def _with_tls_paths(table: _AnyTable, folder: Path) -> _AnyTable:
    """The files of TLS with absolute paths; those that are not named stay so."""
    named = {
        key: str(folder / getattr(table, key))
        for key in table.__struct_fields__
        if "_tls_" in key and key.endswith("_file") and getattr(table, key)
    }
    return msgspec.structs.replace(table, **named)
