"""Messages into a SuperLink, of which one that cannot be delivered whole costs that client's answer, not the run.

Flower's own `push_messages` ends the run if an object was not taken. An object that is sent again after the connection
broke is not taken, for it is there already.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from functools import partial

import httpx
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PushAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, no_object_id_recompute

from fedstill.server.inbox import patiently

log = logging.getLogger(__name__)


def push(grid: Grid, messages: Sequence[Message]) -> Collection[str]:
    """Send messages, and give the ids of those that the SuperLink took; none if they are too much for one request.

    Each message has its id then.
    """
    client = getattr(grid, "_runtime_client", None)
    if client is None:
        return list(grid.push_messages(messages))
    node, run = getattr(grid, "node", Node()), grid.run.run_id
    for message in messages:
        message.metadata.__dict__["_message_id"] = message.object_id
    with no_object_id_recompute():
        objects = {key: one for message in messages for key, one in get_all_nested_objects(message).items()}
        request = PushAppMessagesRequest(
            messages_list=[message_to_proto(remove_content_from_message(message)) for message in messages],
            message_object_trees=[get_object_tree(message) for message in messages],
        )
        try:
            taken = patiently(lambda: client.PushMessages(request))
        except httpx.HTTPStatusError as error:
            if error.response.status_code == httpx.codes.REQUEST_ENTITY_TOO_LARGE:
                return []
            raise
        wanted = set(taken.objects_to_push)
        for key in [one for one in objects if one in wanted]:
            content = objects.pop(key).deflate()
            one = PushObjectRequest(
                node=node, run_id=run, object_id=key, object_content=content, session_id=taken.session_id
            )
            if not patiently(partial(client.PushObject, one)).stored:
                log.warning("an object of %d bytes was not taken; it is there already, or missing", len(content))
    return [identity for identity in taken.message_ids if identity]
