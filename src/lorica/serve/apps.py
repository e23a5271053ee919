"""The two apps behind their gates: for clients, and for the operator."""

from collections.abc import Collection
from pathlib import Path

from lorica.serve.admin import create_admin_app
from lorica.serve.auth import Access, Tenant
from lorica.serve.exchange import Engine
from lorica.serve.gate import Gate, Rules
from lorica.serve.http import HEALTH, METRICS, create_app, public_paths
from lorica.serve.metrics import Metrics
from lorica.serve.refusals import NotAnOperator
from lorica.serve.store import Store


def client_gate(
    engine: Engine,
    metrics: Metrics,
    access: Access,
    *,
    hosts: Collection[str],
    any_address: bool,
    deadline: float,
) -> Gate:
    """hosts, any_address: see gate.Rules. deadline: seconds that an answer may take."""
    rules = Rules(
        authenticate=access.authenticate,
        public=public_paths(),
        always=METRICS,
        hosts=hosts,
        any_address=any_address,
    )
    app = create_app(engine, metrics, deadline=deadline)
    return Gate(app, rules, engine, metrics.count_reply)


def admin_gate(
    engine: Engine, store: Store, metrics: Metrics, access: Access, root: Path | None
) -> Gate:
    """The operator's app, for this machine only. root: the folder that adapters are loaded from."""

    def authenticate(header: str | None) -> Tenant:
        tenant = access.authenticate(header)
        if not tenant.is_admin:
            raise NotAnOperator
        return tenant

    rules = Rules(authenticate=authenticate, public=HEALTH, always=METRICS, for_operator=True)
    app = create_admin_app(engine, store, metrics, root)
    return Gate(app, rules, engine, metrics.count_reply)
