"""Judges of benchmarks: each scores pictures and counts over all of them.

One file for each judge, all behind the protocol of `erase.judges.protocol`; `erase.judges.fid`
compares two sets of pictures instead. Judges whose packages are heavy are extras.
"""
