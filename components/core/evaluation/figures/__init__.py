"""The figures of a report, one a file: data in, inline SVG or PNG out. Nothing here reads or writes files."""
