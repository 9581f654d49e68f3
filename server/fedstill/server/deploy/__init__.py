"""A federation over a network: what it needs on disk, its processes, its runs.

layout       where everything of a federation lies
identities   certificates and node keys
writing      `deploy init`: the folder, with configuration from `templates/`
supervisor   starts the processes, restarts one that dies, ends exactly those
control      what Flower's own command says and does
running      `deploy up`, `down`, `status`
submitting   `fedstill run`, `fedstill resume`
"""
