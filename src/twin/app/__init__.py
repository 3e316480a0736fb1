"""The app's export API, from both ends: ``client`` fetches from it, ``server`` offers it on a local brain.

Not obvious: an answer of the app is untrusted input, as a stranger's file is. It is bounded in bytes and in time,
checked as it passes, and nothing it says becomes a path. The token is in the request's header and nowhere else.
"""
