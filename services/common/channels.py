"""Channels from one service to another. Knows no service; the settings are the public clients' own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc
import grpc.aio

from services.common.errors import ConfigError
from services.common.spec.channel import ChannelSpec
from trimtab.clients.access import Access
from trimtab.clients.channel import DEFAULT_MAX_MESSAGE_MIB, make_async_channel
from trimtab.clients.renewing import AsyncRenewingChannel

PLAINTEXT = ChannelSpec()


@asynccontextmanager
async def make_channel(
    address: str,
    spec: ChannelSpec = PLAINTEXT,
    *,
    max_message_mib: int = DEFAULT_MAX_MESSAGE_MIB,
) -> AsyncIterator[grpc.aio.Channel]:
    """An asyncio channel to host:port or dns:///name:port; UNAVAILABLE is retried, keepalive is on.

    A bare host:port of a name with several addresses is spread over all of them (round_robin). ConfigError where the
    files of `spec` cannot be used; files that change later and do not fit change nothing.
    """
    channel = _open(address, spec, max_message_mib)
    try:
        yield channel
    finally:
        await channel.close()


def _open(address: str, spec: ChannelSpec, max_message_mib: int) -> grpc.aio.Channel:
    try:
        access = Access(
            key_file=spec.key_file,
            tls=spec.tls,
            ca_file=spec.ca_file,
            certificate_file=spec.certificate_file,
            private_key_file=spec.private_key_file,
            # The environment's key is for whoever calls us, not for whom we call.
            environment=False,
        )

        def make(credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
            if credentials is not None and spec.key_file is not None:
                credentials = _with_key(credentials, access)
            return make_async_channel(
                address,
                max_message_mib=max_message_mib,
                credentials=credentials,
                server_name=spec.server_name,
            )

        if access.tls.files:
            return cast("grpc.aio.Channel", AsyncRenewingChannel(access.tls, make))
        return make(access.tls.credentials() if access.tls.wanted else None)
    except (OSError, ValueError) as error:
        raise ConfigError(f"channel to {address}: {error}") from None


def _with_key(credentials: grpc.ChannelCredentials, access: Access) -> grpc.ChannelCredentials:
    """The key goes along with every call, of streams too; gRPC sends it over TLS alone."""

    def tell(_context: grpc.AuthMetadataContext, callback: Callable[[Any, Exception | None], None]) -> None:
        callback(access.metadata(), None)

    # gRPC takes any callable; its types name a class.
    plugin = cast("grpc.AuthMetadataPlugin", tell)
    return grpc.composite_channel_credentials(credentials, grpc.metadata_call_credentials(plugin))
