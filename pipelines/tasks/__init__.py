"""What differs between the tasks in stages evaluate and register: a module for each, with the same functions."""
