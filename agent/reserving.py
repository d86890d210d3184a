"""The pool of a mirror: room for it awaited, then reserved; in the bulk thread.

What plans need goes before: they know of no mirrors, and take what is there.
"""

import logging

from agent.leases import Leases
from agent.load_jobs import Reservation
from agent.member import reserve_pool
from agent.mirror_pool import MirrorPool
from kernels.errors import ResourceError

__all__ = ["reserve_mirror"]

log = logging.getLogger(__name__)

# A plan or a mirror that was just told to end has its memory until the hot loop is done with its
# present piece of work. Plans that are to be loaded stand in line behind this, so it is short.
WAIT_S = 5.0


def reserve_mirror(job: Reservation, leases: Leases, offered_bytes: int) -> MirrorPool:
    """Reserve a mirror's pool in what plans have left, or free soon.

    Args:
        job: what is asked for.
        leases: what is in use; the pool is added.
        offered_bytes: what weights and KV may take altogether.

    Raises:
        ResourceError: there is no room for it; says the bytes.
        Cancelled: nobody wants it any more.
    """
    kv_bytes = job.shape.pool_bytes
    if not leases.wait(
        lambda: leases.held_bytes + kv_bytes <= offered_bytes, job.cancelled, WAIT_S
    ):
        raise ResourceError(
            f"a mirror of {len(job.groups)} head groups takes {kv_bytes} bytes; weights "
            f"and KV here have {leases.held_bytes} of the {offered_bytes} that this agent offers"
        )
    pool = MirrorPool(*job.key, job.groups, reserve_pool(job.shape))
    leases.add(pool.kv, (), kv_bytes)
    log.info("epoch=%d mirror kv_bytes=%d", pool.epoch, kv_bytes)
    return pool
