"""The primitives in native C++: a library without torch in it, called through its C interface."""
