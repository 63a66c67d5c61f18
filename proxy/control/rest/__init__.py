"""REST: the door's verbs over HTTP, under `/v1`, with `/metrics`, `/healthz`, `/readyz` and the API's own page.

Bodies are JSON both ways. Errors are problem+json (RFC 9457) whose `remedy` says what to do. This package knows HTTP and the
door, and nothing of what is behind it. A module for each topic has the handlers, which call one verb each; the one way for
them to the door and to who calls is in `common`, what goes wrong is in `problems`.
"""

from proxy.control.rest.application import build_app

__all__ = ["build_app"]
