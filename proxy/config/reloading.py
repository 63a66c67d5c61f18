"""What a reload comes to: two configs compared, and the first one with all of the second that a reload applies.

Pure: whoever asks for the plan carries it out. Values are applied where their keys say so. Engines come and go while Turnout
runs, by this and by command; nothing may be left that goes to one that is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec
from msgspec import inspect

from proxy.config.engines import EngineConfig, check_addition
from proxy.config.problems import ConfigErrors
from proxy.config.reader import bare, fields_of, is_leaf, quoted, struct_of
from proxy.config.service import ServiceConfig
from proxy.config.table import Secret
from proxy.config.text import KeyPath, spell
from proxy.config.whole import Config
from proxy.errors import ConfigError, Conflict

EnginePlace = tuple[str, str]
"""Service and engine, by their names."""

Commanded = Mapping[EnginePlace, EngineConfig | None]
"""What was changed about the engines by command: those that were added, and None for those that were removed."""

WhyStays = Callable[[Mapping[str, ServiceConfig], str, str], str]
"""Why an engine cannot be removed from a service now, empty if it can; asked with the services as the reload would leave
them, but for their engines."""


class ReloadPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a reload would come to. A line is `service.shop.pool_size: 200 -> 300`."""

    config: Config
    """In force from then on."""
    added: list[EnginePlace]
    removed: list[EnginePlace]
    applied: list[str]
    """What else is in force from then on."""
    kept: list[str]
    """Engines that are not as the file says, and why."""
    needs_restart: list[str]


class Nowhere(NamedTuple):
    """A key of the file that names an engine which is not there."""

    key: str
    """`service.shop.policy.nightly.target_engine`."""
    service: str
    """The one that does not have it; empty: none has."""
    engine: str
    why: str
    """And what to do."""


def with_commanded(config: Config, commanded: Commanded) -> Config:
    """The config with the engines that were added by command, and without those that were removed: the file does not bring
    them back. Services that it does not have any more are passed over, and one that would have no engine is left alone."""
    services = dict(config.service)
    for name, service in config.service.items():
        said = {engine: one for (owner, engine), one in commanded.items() if owner == name}
        engines = {engine: one for engine, one in {**service.engine, **said}.items() if one is not None}
        if said and engines:
            services[name] = msgspec.structs.replace(service, engine=engines)
    return msgspec.structs.replace(config, service=services)


def plan_reload(old: Config, file: Config, commanded: Commanded, why_stays: WhyStays) -> ReloadPlan:
    """From `old`, which is in force, to what the file says now.

    Raises ConfigErrors, and then nothing of the file may be applied: an engine that it brings cannot be added, or something in
    it names an engine that would not be there afterwards.
    """
    new = with_commanded(file, commanded)
    services = _merged(struct_of(Config), old, new).service
    added: list[EnginePlace] = []
    removed: list[EnginePlace] = []
    kept: list[str] = []
    errors: list[ConfigError] = []
    engines: dict[str, dict[str, EngineConfig]] = {}
    for name, service in old.service.items():
        if name not in new.service or new.service[name].protocol != service.protocol:
            # Another service, in all but its name, which needs a restart; so do its engines.
            continue
        wanted = new.service[name].engine
        after = {engine: service.engine.get(engine, one) for engine, one in wanted.items()}
        stays = {engine: why_stays(services, name, engine) for engine in service.engine if engine not in wanted}
        after |= {engine: service.engine[engine] for engine, why in stays.items() if why}
        kept += [f"{spell(('service', name, 'engine', engine))}: {why}" for engine, why in stays.items() if why]
        kept += _otherwise(name, file.service[name].engine, after, commanded)
        removed += [(name, engine) for engine, why in stays.items() if not why]
        added += [(name, engine) for engine in wanted if engine not in service.engine]
        errors += _cannot_be_added(name, service.engine, wanted, after, stays)
        engines[name] = after
    base, goal = _with_engines(old, engines), _with_engines(new, engines)
    errors += [
        ConfigError(
            one.key,
            (
                f'service "{one.service}" would have no engine "{one.engine}": {one.why}'
                if one.service
                else f'no service would have an engine "{one.engine}": {one.why}'
            ),
        )
        for one in going_nowhere(file, base, commanded)
    ]
    if errors:
        raise ConfigErrors(errors)
    applied, needs_restart = _diff(base, goal)
    return ReloadPlan(
        config=_merged(struct_of(Config), base, goal),
        added=added,
        removed=removed,
        applied=applied,
        kept=kept,
        needs_restart=needs_restart,
    )


def _with_engines(config: Config, engines: Mapping[str, Mapping[str, EngineConfig]]) -> Config:
    """With these engines and no others, each as it stands in `config`, if it stands there."""
    services = dict(config.service)
    for name, ones in engines.items():
        own = services[name].engine
        after = {engine: own.get(engine, one) for engine, one in ones.items()}
        services[name] = msgspec.structs.replace(services[name], engine=after)
    return msgspec.structs.replace(config, service=services)


def _cannot_be_added(
    service: str,
    before: Mapping[str, EngineConfig],
    wanted: Mapping[str, EngineConfig],
    after: Mapping[str, EngineConfig],
    stays: Mapping[str, str],
) -> Iterator[ConfigError]:
    """As a command would be told that would add them. The file fits itself; what is in force may not fit it."""
    for name, engine in wanted.items():
        if name in before:
            continue
        others = {other: one for other, one in after.items() if other != name}
        try:
            check_addition(service, others, name, engine)
        except Conflict as error:
            holder = next(other for other, one in others.items() if one.address == engine.address)
            why = error.hint
            if holder not in wanted:
                why = f"it cannot be removed now: {stays[holder]}"
            elif wanted[holder].address != engine.address:
                why = "its new address needs a restart"
            yield ConfigError(spell(("service", service, "engine", name)), f"{error.text}; {why}")


def _otherwise(
    service: str, file: Mapping[str, EngineConfig], after: Mapping[str, EngineConfig], commanded: Commanded
) -> Iterator[str]:
    """Lines about engines of a service of which a command has said something else than the file."""
    for (owner, name), one in commanded.items():
        if owner != service:
            continue
        where = spell(("service", service, "engine", name))
        if one is None:
            if name in file and name not in after:
                yield f"{where}: {_stays_away(name, file[name])}"
        elif name not in file:
            yield f"{where}: it was added while Turnout ran; `turnout engine remove {name}` takes it out"
        elif file[name] != one:
            found = _differences(struct_of(EngineConfig), one, file[name], (), False)
            keys = ", ".join(spell(path) for path, _before, _after, _applies in found)
            yield f"{where}: it was added while Turnout ran, and stays so whatever the file says of {keys}"


def _stays_away(name: str, engine: EngineConfig) -> str:
    return (
        "it was removed while Turnout ran, and stays so whatever the file says; "
        f"`turnout engine add {name} {engine.address}` brings it back"
    )


def going_nowhere(file: Config, after: Config, commanded: Commanded) -> Iterator[Nowhere]:
    """What the file has about engines that are not in `after`, which is in force or would be. `active` is not among it: it
    counts at the first start only, and that engine may have been left and removed since. A service that the file brings
    comes as a whole, with a restart."""
    for name, service in file.service.items():
        if name not in after.service:
            continue
        named: list[tuple[KeyPath, str]] = [
            (("policy", policy, "target_engine"), rules.target_engine) for policy, rules in service.policy.items()
        ]
        for index, rule in enumerate(service.route):
            named += [(("route", index, "to", number), engine) for number, engine in enumerate(rule.to)]
        for path, engine in named:
            if engine not in after.service[name].engine:
                why = _why_nowhere(name, service, engine, commanded)
                yield Nowhere(spell(("service", name, *path)), name, engine, why)
    there = {engine for service in after.service.values() for engine in service.engine}
    for rule_name, alert in file.alerts.rule.items():
        for index, engine in enumerate(alert.engines):
            if engine in there:
                continue
            name, service = next((name, one) for name, one in file.service.items() if engine in one.engine)
            why = _why_nowhere(name, service, engine, commanded)
            yield Nowhere(spell(("alerts", "rule", rule_name, "engines", index)), "", engine, why)


def _why_nowhere(name: str, service: ServiceConfig, engine: str, commanded: Commanded) -> str:
    """Why an engine that the file has in this service would not be there, and what to do."""
    if (name, engine) in commanded:
        return f"{_stays_away(engine, service.engine[engine])}, or take this out of the file"
    return (
        f'the file\'s engines of service "{name}" come with a restart; restart Turnout, or take this out of the file '
        "until then"
    )


def _diff(old: Config, new: Config) -> tuple[list[str], list[str]]:
    """Lines about what is applied, and about what needs a restart; of a secret only the key is told."""
    applied: list[str] = []
    needs_restart: list[str] = []
    for path, before, after, is_reloadable in _differences(struct_of(Config), old, new, (), False):
        line = spell(path) if before is None and after is None else f"{spell(path)}: {before} -> {after}"
        (applied if is_reloadable else needs_restart).append(line)
    return applied, needs_restart


def _differences(
    kind: inspect.Type, old: Any, new: Any, at: KeyPath, is_reloadable: bool
) -> Iterator[tuple[KeyPath, str | None, str | None, bool]]:
    """Path, old and new as text (None for both: not to be told), and whether a reload applies it."""
    if old == new:
        return
    match kind:
        case inspect.StructType() if old is not None and new is not None and kind.cls is not Secret:
            for field, inner, applies in fields_of(kind):
                before, after = getattr(old, field.name), getattr(new, field.name)
                yield from _differences(inner, before, after, (*at, field.encode_name), applies or is_reloadable)
        case inspect.StructType() if kind.cls is Secret:
            yield at, None, None, is_reloadable
        case inspect.DictType() if old is not None and new is not None:
            for name in sorted(old.keys() | new.keys()):
                inner, _applies = bare(kind.value_type)
                yield from _differences(inner, old.get(name), new.get(name), (*at, name), is_reloadable)
        case inspect.StructType() | inspect.DictType():
            yield at, "absent" if old is None else "present", "absent" if new is None else "present", is_reloadable
        case inspect.ListType() if not is_leaf(kind):
            yield at, f"{len(old)} of them", f"{len(new)} of them, or others", is_reloadable
        case _:
            yield at, _said_plain(old), _said_plain(new), is_reloadable


def _merged(kind: inspect.Type, old: Any, new: Any) -> Any:
    """`old` with the values of `new` that a reload applies, at any depth; what has come or gone needs a restart."""
    match kind:
        case inspect.StructType() if old is not None and new is not None:
            changes = {}
            for field, inner, applies in fields_of(kind):
                before, after = getattr(old, field.name), getattr(new, field.name)
                changes[field.name] = after if applies else _merged(inner, before, after)
            return msgspec.structs.replace(old, **changes)
        case inspect.DictType() if old is not None and new is not None:
            inner, _applies = bare(kind.value_type)
            return {name: _merged(inner, one, new[name]) if name in new else one for name, one in old.items()}
        case _:
            return old


def _said_plain(value: Any) -> str:
    return ", ".join(value) or "none" if isinstance(value, list) else quoted(value)
