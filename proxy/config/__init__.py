"""The config file: one typed table. Name with unit, type, range, default, help and whether a reload applies it.

The sample file in `conf/` and the reference in `docs/` are produced from the structs in this package: `whole.Config` is the
root, the other tables stand in the modules beside it. Unknown keys are errors that name the nearest key and the line. Secrets
come from an environment variable or a file and are never printed.

`load` reads in four steps, and tells all that a step finds before it gives up: the text is TOML; every key is known and
every value has its type and range (`reader`, which walks the structs so that it can name the key; msgspec's own messages do
not); the values fit each other (`meaning`); the secrets are there (`resolver`).

What others use is named here, and taken from here.
"""

from proxy.config.addresses import is_loopback, parse_address
from proxy.config.alerts import (
    ALERT_EVENTS,
    ALERT_FIGURES,
    ALERTS_OF_ENGINES,
    AlertEngineFigure,
    AlertLag,
    AlertRuleConfig,
    AlertsConfig,
    AlertWhen,
    ReceiverConfig,
    Severity,
)
from proxy.config.console import CONSOLE_DATABASE, ConsoleConfig
from proxy.config.control import CallerConfig, ControlConfig, JwtConfig, RoleName, hash_token
from proxy.config.engines import AdminConfig, EngineConfig, EngineLogin, LoadConfig, check_addition
from proxy.config.listener import ListenerConfig
from proxy.config.loading import decode_effective, encode_effective, load
from proxy.config.policies import PolicyConfig, StrategyName, policy_faults
from proxy.config.problems import ConfigErrors
from proxy.config.reader import NAME, spell_range
from proxy.config.reloading import Commanded, ReloadPlan, going_nowhere, plan_reload, with_commanded
from proxy.config.resolver import SECRET_BYTES_MAX, unfit_secret
from proxy.config.service import AuthConfig, RouteConfig, ServiceConfig
from proxy.config.showing import masked
from proxy.config.switching import FailoverConfig, HookConfig, SwitchConfig
from proxy.config.table import Secret
from proxy.config.telemetry import LogConfig, LogLevel, TelemetryConfig
from proxy.config.text import UsersError, parse_users, spell
from proxy.config.whole import Config

__all__ = [
    "ALERTS_OF_ENGINES",
    "ALERT_EVENTS",
    "ALERT_FIGURES",
    "CONSOLE_DATABASE",
    "NAME",
    "SECRET_BYTES_MAX",
    "AdminConfig",
    "AlertEngineFigure",
    "AlertLag",
    "AlertRuleConfig",
    "AlertWhen",
    "AlertsConfig",
    "AuthConfig",
    "CallerConfig",
    "Commanded",
    "Config",
    "ConfigErrors",
    "ConsoleConfig",
    "ControlConfig",
    "EngineConfig",
    "EngineLogin",
    "FailoverConfig",
    "HookConfig",
    "JwtConfig",
    "ListenerConfig",
    "LoadConfig",
    "LogConfig",
    "LogLevel",
    "PolicyConfig",
    "ReceiverConfig",
    "ReloadPlan",
    "RoleName",
    "RouteConfig",
    "Secret",
    "ServiceConfig",
    "Severity",
    "StrategyName",
    "SwitchConfig",
    "TelemetryConfig",
    "UsersError",
    "check_addition",
    "decode_effective",
    "encode_effective",
    "going_nowhere",
    "hash_token",
    "is_loopback",
    "load",
    "masked",
    "parse_address",
    "parse_users",
    "plan_reload",
    "policy_faults",
    "spell",
    "spell_range",
    "unfit_secret",
    "with_commanded",
]
