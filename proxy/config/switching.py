"""The tables of a service's switches: their limits, what runs with them, what happens when the active engine fails."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from proxy.config.table import RELOADABLE, Secret, Table


class SwitchConfig(Table, frozen=True, kw_only=True):
    """Limits of a switch; a plan may narrow them."""

    hold_ms_max: Annotated[int, Meta(ge=100, le=60_000, extra=RELOADABLE)] = 5_000
    """Longest time one client may wait for a switch, in milliseconds; then new work is refused."""
    held_requests_max: Annotated[int, Meta(ge=1, le=1_000_000, extra=RELOADABLE)] = 10_000
    """Most requests that wait for a switch or a failover, in each worker; of more, those that came last are refused."""
    drain_timeout_s: Annotated[float, Meta(ge=0, le=3_600, extra=RELOADABLE)] = 30.0
    """How long open transactions may go on before the plan's `on_drain_expired` applies, in seconds."""
    on_drain_expired: Annotated[Literal["abort", "terminate", "leave"], Meta(extra=RELOADABLE)] = "abort"
    """`abort` gives the source back and nobody notices; `terminate` rolls back the transactions that are left
    and ends the sessions that hold what cannot be carried; `leave` lets them keep the backend they have, which needs
    `replication` none."""
    max_pending_transactions: Annotated[int, Meta(ge=0, le=1_000_000, extra=RELOADABLE)] = 0
    """A switch does not begin while more sessions than that are in a transaction; 0: no limit."""
    catchup_timeout_s: Annotated[float, Meta(gt=0, le=3_600, extra=RELOADABLE)] = 4.0
    """How long the target may take to reach the fenced position, in seconds; then the switch is undone."""
    sync: Annotated[Literal["synchronous", "semi_synchronous"], Meta(extra=RELOADABLE)] = "synchronous"
    """Who must have all that the source wrote before the target is promoted. `synchronous`: the target.
    `semi_synchronous`: `min_replicas` engines of the service, the target among them."""
    min_replicas: Annotated[int, Meta(ge=1, le=100, extra=RELOADABLE)] = 2
    """With `sync` semi_synchronous: engines that must have it, the target counted."""
    in_doubt: Annotated[Literal["block", "commit", "rollback"], Meta(extra=RELOADABLE)] = "block"
    """What becomes of prepared transactions (PREPARE TRANSACTION, XA) that nobody has ended when the source is fenced:
    `block` refuses or undoes the switch and names them; `commit` and `rollback` end all of them."""
    sequence_margin: Annotated[int, Meta(ge=0, le=1_000_000_000)] = 1_000
    """Steps by which the sequences of a target go on ahead of the source's, with `replication` logical."""
    compare_at_fence_ms: Annotated[int, Meta(ge=0, le=10_000, extra=RELOADABLE)] = 0
    """How long rows of source and target are compared when both stand still, before the promotion, in milliseconds: as many
    tables as this allows, those first that were looked at longest ago. A difference undoes the switch. Clients wait for it; 0:
    nothing is compared there."""
    promote_timeout_s: Annotated[float, Meta(gt=0, le=3_600, extra=RELOADABLE)] = 10.0
    """How long the promotion of the target may take, in seconds."""
    temp_tables_bytes_max: Annotated[int, Meta(ge=0, le=1024**3, extra=RELOADABLE)] = 1024 * 1024
    """Most bytes of rows in a session's temporary tables that are carried while it is held, as the server sends them; a
    session with more is pinned. 0: none are carried."""
    lag_bytes_max: Annotated[int, Meta(ge=0, extra=RELOADABLE)] = 64 * 1024 * 1024
    """Most bytes of WAL the target may be behind for a switch to begin."""
    lag_s_max: Annotated[float, Meta(ge=0, extra=RELOADABLE)] = 5.0
    """Most seconds a MySQL or MariaDB target may be behind for a switch to begin."""
    batch_size: Annotated[int, Meta(ge=1, le=100_000, extra=RELOADABLE)] = 50
    """Strategy rolling: sessions that move at a time, of all workers together."""
    interval_s: Annotated[float, Meta(ge=0, le=3_600, extra=RELOADABLE)] = 1.0
    """Strategy rolling: pause between two batches, in seconds."""
    traffic_percentage: Annotated[float, Meta(ge=0.01, le=99, extra=RELOADABLE)] = 10.0
    """Strategy canary: share of the sessions, and of the clients that come, that tries the target."""
    validation_duration_s: Annotated[float, Meta(ge=1, le=86_400, extra=RELOADABLE)] = 60.0
    """Strategy canary: how long that share is compared with the rest, in seconds."""
    requests_min: Annotated[int, Meta(ge=100, le=1_000_000_000, extra=RELOADABLE)] = 200
    """Requests that must be there on either side of a comparison (canary, `verify_window_s`)."""
    latency_ratio_max: Annotated[float, Meta(ge=1.01, le=1_000, extra=RELOADABLE)] = 1.5
    """How many times as long requests may take in a comparison, by the geometric mean, before an engine is called worse."""
    error_percent_more_max: Annotated[float, Meta(ge=0, le=100, extra=RELOADABLE)] = 0.5
    """How many more requests of a hundred may fail, not counting errors that are the client's own (SQLSTATE classes 22, 23,
    42), before an engine is called worse."""
    verify_window_s: Annotated[float, Meta(ge=0, le=3_600, extra=RELOADABLE)] = 0.0
    """How long after a cutover the service is compared with what it was before, in seconds; if it is worse, and the engine
    that was left follows the new one (`reverse_replication`, or `replication` none), the service goes back by itself. 0: it is
    not compared."""
    when_busy: Annotated[Literal["refuse", "queue"], Meta(extra=RELOADABLE)] = "refuse"
    """What becomes of a switch that is asked for while another one of the service runs."""
    schedule_grace_s: Annotated[float, Meta(ge=0, le=86_400, extra=RELOADABLE)] = 60.0
    """How late a scheduled switch may begin, in seconds, because Turnout was down at its time; later it does not begin at
    all."""


class FailoverConfig(Table, frozen=True, kw_only=True):
    """What happens when the active engine of a service fails."""

    automatic: Annotated[bool, Meta(extra=RELOADABLE)] = True
    """Another engine takes over by itself. Set it to false where something else promotes standbys."""
    probe_interval_s: Annotated[float, Meta(ge=0.05, le=60, extra=RELOADABLE)] = 0.5
    """Pause between two looks at each engine, in seconds. A worker that loses its connections has the active one looked
    at at once."""
    probe_timeout_s: Annotated[float, Meta(ge=0.05, le=60, extra=RELOADABLE)] = 1.0
    """How long an engine may take to answer a look, in seconds."""
    failures: Annotated[int, Meta(ge=1, le=100, extra=RELOADABLE)] = 3
    """Looks that fail in a row before an engine counts as failed. If all were refused by its host, that is enough; else
    the workers must not have had an answer from it either, and must be unable to log in."""
    starting_s: Annotated[float, Meta(ge=0, le=3_600, extra=RELOADABLE)] = 10.0
    """An engine that answers that it starts, recovers or shuts down is waited for so long before looks count as failed,
    in seconds."""
    lag_tolerance_ms: Annotated[float, Meta(ge=0, le=86_400_000, extra=RELOADABLE)] = 10_000.0
    """A standby that may lack commits of more than so many milliseconds before the failure is not promoted by itself. What
    may be missing is in the report."""
    commit_outcome: Literal["unknown", "resolve"] = "unknown"
    """What a client is told whose COMMIT was under way when the server was lost. `unknown`: `08007`. `resolve` (PostgreSQL,
    `replication` stream): the id of each transaction is asked for in the packet of its COMMIT, and when another server
    has taken over, that one is asked whether it has it: the client then gets COMMIT, or `40001`; `08007` where it is not
    certain or takes longer than `hold_ms_max`. It costs the server one small query for each COMMIT."""
    pause_s: Annotated[float, Meta(ge=0, le=3_600, extra=RELOADABLE)] = 30.0
    """After a failover no other begins by itself for so long, in seconds; doubled with each further one within an hour. 0:
    no pause."""


class HookConfig(Table, frozen=True, kw_only=True):
    """Something of the operator's that runs with each switch of a service: a command or an HTTP call. `{switch}`,
    `{service}`, `{source}`, `{source_address}`, `{target}`, `{target_address}` are filled in."""

    at: Literal["before_fence", "promote", "after_release"]
    """`before_fence`: before anybody is held; `promote`: in place of Turnout's own promotion of the target, while clients
    wait; `after_release`: when clients work on the target."""
    command: list[str] = []
    """Program and arguments, without a shell."""
    url: str = ""
    """http:// or https:// address to call, in place of a command; an answer of 2xx is good."""
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = "POST"
    """Method of the call."""
    body: str = ""
    """Body of the call."""
    content_type: str = "application/json"
    """What the body is."""
    token: Secret | None = None
    """Sent as `Authorization: Bearer`."""
    timeout_s: Annotated[float, Meta(gt=0, le=60)] = 10.0
    """How long it may take, in seconds; then it is ended and has failed."""
    on_failure: Literal["abort", "ignore"] = "abort"
    """`abort`: the switch is undone, if it still can be; `ignore`: it goes on. Either way the report has what happened."""
