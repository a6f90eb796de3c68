"""Channels as Trimtab's services expect them: sizes, keepalive, retries, load balancing. Knows no service."""

from __future__ import annotations

import json
from functools import partial
from typing import cast

import grpc
import grpc.aio

from trimtab.clients.access import Access, is_local
from trimtab.clients.renewing import AsyncRenewingChannel, RenewingChannel

DEFAULT_MAX_MESSAGE_MIB = 64


def channel_options(
    *, max_message_mib: int = DEFAULT_MAX_MESSAGE_MIB, retries: bool = True
) -> list[tuple[str, int | str]]:
    """gRPC channel arguments. The largest message is `max_message_mib` MiB both ways.

    With `retries` UNAVAILABLE is retried by the channel itself, up to 4 attempts. The retry buffer is as
    large as a message: with gRPC's own 256 KiB a larger call would silently never be retried.
    """
    size = max_message_mib << 20
    return [
        ("grpc.enable_retries", int(retries)),
        ("grpc.max_send_message_length", size),
        ("grpc.max_receive_message_length", size),
        ("grpc.per_rpc_retry_buffer_size", size),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        ("grpc.service_config", _service_config()),
    ]


def _service_config() -> str:
    # round_robin over what the name resolves to; servers close old connections so that new pods are seen.
    return json.dumps(
        {
            "loadBalancingConfig": [{"round_robin": {}}],
            "methodConfig": [
                {
                    "name": [{}],
                    "retryPolicy": {
                        "maxAttempts": 4,
                        "initialBackoff": "0.2s",
                        "maxBackoff": "3s",
                        "backoffMultiplier": 2,
                        "retryableStatusCodes": ["UNAVAILABLE"],
                    },
                }
            ],
        }
    )


def make_sync_channel(
    address: str,
    *,
    max_message_mib: int = DEFAULT_MAX_MESSAGE_MIB,
    retries: bool = True,
    credentials: grpc.ChannelCredentials | None = None,
    server_name: str = "",
) -> grpc.Channel:
    """A blocking channel to host:port or a gRPC target such as dns:///name:port.

    server_name: what its certificate must be made out to; empty: the host of the address.
    """
    options = channel_options(max_message_mib=max_message_mib, retries=retries)
    options += _direct(address) + _expecting(server_name)
    if credentials is None:
        return grpc.insecure_channel(address, options=options)
    return grpc.secure_channel(address, credentials, options=options)


def make_async_channel(
    address: str,
    *,
    max_message_mib: int = DEFAULT_MAX_MESSAGE_MIB,
    retries: bool = True,
    credentials: grpc.ChannelCredentials | None = None,
    server_name: str = "",
) -> grpc.aio.Channel:
    """The same for asyncio. Make it inside the loop that uses it."""
    options = channel_options(max_message_mib=max_message_mib, retries=retries)
    options += _direct(address) + _expecting(server_name)
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=options)
    return grpc.aio.secure_channel(address, credentials, options=options)


def _direct(address: str) -> list[tuple[str, int | str]]:
    # A proxy of the environment is for other machines: gRPC would ask it for our loopback, and tell it our key.
    return [("grpc.enable_http_proxy", 0)] if is_local(address) else []


def _expecting(server_name: str) -> list[tuple[str, int | str]]:
    # Behind an address that says nothing, such as a pod's, a service is known by its certificate's name.
    return [("grpc.ssl_target_name_override", server_name)] if server_name else []


def open_sync_channel(
    target: str,
    access: Access,
    *,
    max_message_mib: int = DEFAULT_MAX_MESSAGE_MIB,
    credentials: grpc.ChannelCredentials | None = None,
) -> grpc.Channel:
    """A client's own channel, without retries of its own, rebuilt when certificate files change.

    ValueError where `credentials` are given beside files, or a key would travel in the clear.
    """
    _check(target, access, credentials)
    make = partial(_sync_channel, target, max_message_mib)
    if access.tls.files:
        return cast("grpc.Channel", RenewingChannel(access.tls, make))
    return make(access.tls.credentials() if access.tls.wanted else credentials)


def open_async_channel(
    target: str,
    access: Access,
    *,
    max_message_mib: int = DEFAULT_MAX_MESSAGE_MIB,
    credentials: grpc.ChannelCredentials | None = None,
) -> grpc.aio.Channel:
    """The same for asyncio."""
    _check(target, access, credentials)
    make = partial(_async_channel, target, max_message_mib)
    if access.tls.files:
        return cast("grpc.aio.Channel", AsyncRenewingChannel(access.tls, make))
    return make(access.tls.credentials() if access.tls.wanted else credentials)


def _check(target: str, access: Access, credentials: grpc.ChannelCredentials | None) -> None:
    if credentials is not None and access.tls.wanted:
        raise ValueError("credentials exclude tls, ca_file and certificate_file")
    access.check_target(target, secure=access.tls.wanted or credentials is not None)


def _sync_channel(
    target: str, max_message_mib: int, credentials: grpc.ChannelCredentials | None
) -> grpc.Channel:
    return make_sync_channel(target, max_message_mib=max_message_mib, retries=False, credentials=credentials)


def _async_channel(
    target: str, max_message_mib: int, credentials: grpc.ChannelCredentials | None
) -> grpc.aio.Channel:
    return make_async_channel(target, max_message_mib=max_message_mib, retries=False, credentials=credentials)
