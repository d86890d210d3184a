"""The kernels that Python calls on an agent; `formats` has what else both sides have to know.

Importing this file imports no source of a kernel, and so no compiler; see `entry`.
"""

from kernels.entry import Entry

__all__ = [
    "count_up",
    "decode_flat",
    "dismiss",
    "encode_flat",
    "init_semaphores",
    "penalise",
    "prepare_rows",
    "run_stage",
    "top_of_row",
    "unpack_lane",
]

count_up = Entry("kernels.team", "count_up")
decode_flat = Entry("kernels.exchange", "decode_flat")
dismiss = Entry("kernels.team", "dismiss")
encode_flat = Entry("kernels.exchange", "encode_flat")
init_semaphores = Entry("kernels.team", "init_semaphores")
penalise = Entry("kernels.vocab", "penalise")
prepare_rows = Entry("kernels.row_table", "prepare_rows")
run_stage = Entry("kernels.phases", "run_stage")
top_of_row = Entry("kernels.vocab", "top_of_row")
unpack_lane = Entry("kernels.unpack", "unpack_lane")
