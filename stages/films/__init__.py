"""Image files of films, as people have them, to grey squares; the code for it needs neither torch nor pandas."""
