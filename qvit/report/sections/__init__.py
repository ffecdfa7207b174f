"""The sections of a report: each file has small functions that turn evidence into a section value, or into None
where there is nothing to show.
"""
