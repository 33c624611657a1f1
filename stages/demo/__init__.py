"""The exported student in a web page, which computes in the browser and sends nothing."""
