from components.core.command import run_command
from components.report.step import command

run_command(command)
