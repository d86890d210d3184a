"""What a simulated coordinator hears of its boards: heartbeats, and news out of turn. Pure."""

from collections import deque

from agent.ids import AgentName
from agent.speedometer import is_news
from tools.simulation.load_setting import BoardState, LoadSetting

__all__ = ["Sensors"]


class Sensors:
    """All boards; each tells its rate when a heartbeat is due, and at once when it is news."""

    def __init__(self, setting: LoadSetting) -> None:
        self._setting = setting
        n = len(setting.names)
        self._told = dict.fromkeys(setting.names, 0.0)
        # Boards do not beat all at once.
        self._due_s = {name: setting.beat_s * (i + 1) / n for i, name in enumerate(setting.names)}
        self._on_the_way: deque[tuple[float, AgentName, float]] = deque()

    def hear(self, measured: BoardState, now_s: float) -> list[tuple[AgentName, float]]:
        """Let the boards look at their rates, 0 = away; return what arrives of them by now."""
        arrives_s = now_s + self._setting.notice_s
        for name, rate in zip(self._setting.names, measured.rates, strict=True):
            told = self._told[name]
            if rate <= 0:
                self._told[name] = 0.0
            # Times are sums of steps.
            elif now_s >= self._due_s[name] - 1e-9 or (told > 0 and is_news(told / rate)):
                self._told[name], self._due_s[name] = rate, now_s + self._setting.beat_s
                self._on_the_way.append((arrives_s, name, rate))
        heard = []
        while self._on_the_way and self._on_the_way[0][0] <= now_s + 1e-9:
            _, name, rate = self._on_the_way.popleft()
            heard.append((name, rate))
        return heard
