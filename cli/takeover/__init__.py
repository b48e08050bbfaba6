"""`moorage bench takeover`: from the death of a whole host to its volume in use on another one."""
