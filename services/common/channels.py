"""Channels from one service to another. Knows no service; the settings are the public clients' own."""

from __future__ import annotations

import grpc
import grpc.aio

from trimtab.clients.channel import DEFAULT_MAX_MESSAGE_MIB, make_async_channel


def make_channel(
    address: str,
    *,
    max_message_mib: int = DEFAULT_MAX_MESSAGE_MIB,
    credentials: grpc.ChannelCredentials | None = None,
) -> grpc.aio.Channel:
    """An asyncio channel to host:port or dns:///name:port; UNAVAILABLE is retried, keepalive is on.

    A bare host:port of a name with several addresses is spread over all of them (round_robin).
    """
    return make_async_channel(address, max_message_mib=max_message_mib, credentials=credentials)
