"""The control socket: who asks, what they may, how they are answered, and the events they watch.

This room accepts connections and routes requests to handlers that others give it. It holds no key, opens no
path a client names, and knows nothing of how jobs, the vault or the audit log work.
"""
