"""Hold the sentences of the stories: openings, endings and eight plots.

Does: templates, parsed once into named parts. Does not: the words that fill their slots
(`tools/story_words.py`) or the choices (`tools/stories.py`).

In the templates `[a|b|c]` is a choice and `{slot}` a word of the story's cast. A plot is a row of
beats: one opens with `- `, its other wordings with `| `. Earlier choices are likelier, so that
a trained model has a clear favourite at each turn.
"""

from __future__ import annotations

from typing import Final

# `opening` and `finder opening` begin a story; {own} {find} {love} {out} stand for whole sentences.
TEMPLATES: Final = """
= opening
Once upon a time, there was a {trait} {kind} named {H}[| who lived {home}]. {own}
One {day}, a {trait} {kind} named {H} [went|walked] {place} with [{his}|a] {obj}. {love}
{H} had a {obj}. {love} {out}
Once upon a time, a {trait} {kind} named {H} lived {home}. {own}
[There was|There was once|Once there was] a {trait} {kind} [named|called] {H}. {own}
A [{trait} |]{kind} had a {obj}. {His} name was {H}. {love} {out}
{H} was a {trait} {kind}[| who lived {home}]. {own}
{H} was a {trait} {kind} with a {obj}. {love} {out}
One {day}, {H} [went|walked] {place} with [{his}|a] {obj}. {love}
One {day}, {H} the {kind} took {his} {obj} {place}. {love}
It was a {day}. A {trait} {kind} named {H} was on the way {place} with a {obj}. {love}
"Look at my {obj}!" said {H}. {H} was a {trait} {kind}. {love} {out}
{H} the {kind} had a {obj}. {love} {out}
{H} was [very |]happy. [Today|It was {his} birthday, and] {he} [had|got] a {obj}. {love} {out}
{H} [loved {his} {obj}[| very much]|and {his} {obj} were always together]. {love} {out}
[A {trait} {kind} named {H}|{H}] lived {home}. {own}
[Long ago, {home}, there|Far away, {home}, there|{Home}|{Home}, there] lived a {trait} {kind} \
named {H}. {own}
{H} got a {obj} for {his} birthday. {love} {out}
It was {H}'s birthday. {Elder} gave {him} a {obj}. {love} {out}
It was a {day}, and {H} [went|walked] {place} with [{his}|a] {obj}. {love}
[Today|This morning], {H} took {his} {obj} {place}. {love}
{H} [wanted to play|was playing|played] with {his} {obj}. {love}
It was a {day}. {H} was playing with {his} {obj}. {love}
= finder opening
Once upon a time, there was a {trait} {kind} named {H}[| who lived {home}]. {find}
Once upon a time, a {trait} {kind} named {H} lived {home}. {find}
One {day}, a {trait} {kind} named {H} [went|walked] {place}. There {he} found a {obj} {s1}.
One {day}, {H} found a {obj} {s1}.
There was [once |]a {trait} {kind} named {H}[| who lived {home}]. {find}
{H} was a {trait} {kind}[| who lived {home}]. {find}
{H}[| the {kind}] found a {obj} {s1}.
[A {trait} {kind} named {H}|{H}] lived {home}. {find}
[Long ago, {home}, there|{Home}|{Home}, there] lived a {trait} {kind} named {H}. {find}
{H} went for a walk. {find}
= own
{He} had a {obj}. {love} {out}
{H} had a {obj}. {love} {out}
{His} [favourite|best] toy was a {obj}. {love} {out}
One day, {he} got a {obj}. {love} {out}
= find
One {day}, {he} found a {obj} {s1}.
One day, {he} [went|walked] {place}. There {he} saw a {obj} {s1}.
One {day}, {H} was on the way {place} when {he} saw a {obj} {s1}.
= love
{He} loved to {use}.
Every day {he} {used}.
= wish
{He} wanted to {use}, but {he} did not know how.
{He} could not {use} yet.
= out
One {day}, {H} took the {thing} {place}.
One day, {he} [went|walked] {place} with the {thing}.
One {day}, {he} carried it {place}.
= ending
{H} went home with a big smile.
It was the best day {H} ever had.
That night, {H} fell asleep with a smile.
And {H} was very happy.
{H} never forgot that day.
And {H} told everyone at home about the {thing}.
= owner ending
From that day on, {H} took good care of the {thing}.
{H} went home with a big smile and the {obj}.
That night, {H} fell asleep next to the {thing}.
{H} and the {thing} lived happily ever after.
= plot lost
- {H} put the {thing} down to [pick berries|look at a bug]. When {he} came back, it was gone.
| But when it was time to go home, the {thing} was gone.
| {H} sat down and fell asleep. When {he} woke up, the {thing} was gone.
- "Oh no! Where is my {thing}?" cried {H}.
| "My {thing} is lost!" cried {H}. {He} felt very sad.
| {H} wanted to cry. "Where can my {thing} be?" {he} asked.
- {H} looked {s1}, but it was not there. {He} looked {s2}, but it was not there.
| First {he} looked {s1}. Then {he} looked {s2}. The {thing} was not there.
| {He} looked {s1} and {s2}, but {he} did not find it.
- Just then, {a_helper} came by. "Why are you so sad, {H}?" asked {helper}.
| Soon {he} met {a_helper}. "What is the matter, {H}?" asked {helper}.
- "I lost my {obj}," said {H}. "Do not [worry|cry]," said {helper}. "I will help you."
| "I cannot find my {obj}," said {H}. "Let us look together," said {helper}.
- They looked {s3}, and there was the {obj}! {H} jumped with joy.
| They walked and walked. At last, they saw the {obj} {s3}.
| {Helper} pointed. "Look there!" The {obj} was {s3}.
- "Thank you for your help," said {H}, and {he} hugged {helper}.
| "Thank you so much!" said {H}. {He} held the {thing} tight.
| {H} thanked {helper} and laughed. "Now I will watch my {thing} better," {he} said.
= plot share
- There {he} met {an_other}. "May I play with your {thing}?" asked {other}.
| Soon {an_other} came along. "What a nice {thing}! May I try it?" asked {other}.
| {An_other} was sitting {s1}. "Can I have a turn with the {thing}?" asked {other}.
- "No, it is mine," said {H}. {Other} was sad and walked away.
| {H} did not want to share. "No!" {he} said. {Other} began to cry.
| {H} held the {thing} tight and said no. {Other} looked down and went away.
- {H} played alone, but it was not much fun. {He} felt sorry.
| Then {H} was all alone with the {thing}. It was too quiet, and {he} felt bad.
| {H} thought about it. It was not kind to say no.
- {He} ran to {other}. "I am sorry," {he} said. "We can share my {thing}."
| "Please come back!" called {H}. "You can have a turn with my {thing}."
- {Other} smiled. First {other} took the {thing}, and then it was {H}'s turn.
| {Other} was so happy. They took turns with the {obj} until the sun went down.
| They played with the {obj} all day, and they laughed and laughed.
- "Sharing is more fun than playing alone," said {H}.
| "You are a good friend, {H}," said {other}.
| "Thank you for sharing," said {other}. "Now we are friends," said {H}.
= plot brave
- Suddenly, the {thing} fell into a dark {dark}.
| Then a big bird took the {thing} and dropped it into a dark {dark}.
| On the way, {H} fell down, and the {thing} rolled into a dark {dark}.
- "Oh no, my {thing}!" said {H}. {He} was afraid of the dark.
| {H} wanted to get it, but {he} was scared. It was so dark in there.
| {H} looked into the {dark}. {His} legs began to shake. "I am too scared," {he} said.
- {A_helper} heard {him}. "You can be scared and brave at the same time," said {helper}.
| Just then, {a_helper} came by. "Take a deep breath and count to three," said {helper}.
| {A_helper} came to help. "I will wait here and sing for you," said {helper}.
- {H} took a deep breath. "One, two, three!" {he} said. Then {he} went in.
| {H} closed {his} eyes and thought about the {obj}. Then {he} went in, step by step.
- It was dark and cold. {He} heard a strange sound, but it was only the wind.
| Inside, something moved. {H} stood still. It was only a tiny bug.
| It was very quiet inside. {He} took one step, and then one more.
- Then {he} saw the {obj}. {He} picked it up and ran back into the light.
| There was the {obj}! {H} took it and ran out as fast as {he} could.
- "I did it!" shouted {H}. "You were so brave," said {helper}.
| "I am proud of you, {H}," said {helper}. {H} smiled and held the {thing} up high.
= plot learn
- {H} tried to {use}, but it did not work.
| {He} tried once. {He} tried two times. It did not work at all.
| First {he} was too fast. Then {he} was too slow.
- "This is too hard!" said {H}. {He} sat down {s1} and felt sad.
| {H} put the {thing} down. "I will never learn it," {he} said.
| {H} was so angry that {he} wanted to throw the {thing} away.
- {A_helper} saw {him}. "Do not give up, {H}," said {helper}. "I can show you how."
| Just then, {a_helper} came by. "I could not do it at first," said {helper}. "Try again with me."
- {Helper} took the {thing} and showed {him} what to do, very slowly.
| {H} watched {helper} and listened to every word.
| "Go slowly and take your time," said {helper}.
- {H} tried again and again. On the first day it was hard. On the next day it was better.
| Every day {H} practised a little. Every day it went a little better.
| {H} practised all day until the sun went down.
- At last, {he} took the {obj} and {used}. "Look! I can do it!" {he} shouted.
| Then, one morning, {H} took the {obj} and {used}. It worked!
- "I knew you could do it," said {helper}.
| "Thank you for your help," said {H}, and {he} hugged {helper}.
| {Helper} clapped and cheered. {H} was very proud.
= plot mend
- {H} ran too fast and fell on the {thing}. Crack! Now there was a big {damage} in it.
| {H} did not look where {he} was going. Bump! The {thing} hit a rock, and now it had a {damage}.
| {H} threw the {thing} up high. It fell down hard, and now it had a big {damage}.
- "Oh no, what have I done?" said {H}. {He} began to cry.
| {H} felt very bad. "My poor {thing}," {he} said.
| {H} wanted to hide the {thing} {s1}. But that did not feel right.
- {He} went to {a_helper} and told the truth. "I was not careful," {he} said.
| Soon {a_helper} came by. "I broke my {obj}," said {H}. "It was my mistake."
- "Everyone makes mistakes," said {helper}. "We can mend it."
| "It was good to tell me," said {helper}. "Let us fix it together."
- They got some glue and a small brush. {H} worked slowly, and {helper} helped.
| {Helper} held the {thing}, and {H} put a small patch over the {damage}.
- Then they waited for it to dry. {H} sang a little song.
| It took a long time, but {H} did not give up.
- When they were done, the {obj} was as good as new.
| Soon the {damage} was gone. {H} took the {obj} and {used}.
- "Thank you!" said {H}. "Next time I will be more careful."
| "Now I like my {thing} even more," said {H}, "because we mended it."
= plot lend
- On the way, {he} saw {an_other} {s1}. {Other} was crying.
| There {he} met {an_other}. {Other} looked very sad.
| {An_other} was sitting all alone {s1}.
- "What is the matter?" asked {H}. "I have no one to play with," said {other}.
| "Why are you sad?" asked {H}. "I am ill, and I cannot play," said {other}.
| "Why do you cry?" asked {H}. "I miss my home," said {other}.
- {H} thought for a while. {He} looked at the {thing}. {He} loved it so much.
| {H} wanted to help, but how? Then {he} had an idea.
- "You can have my {obj} for today," said {H}. "It always makes me happy."
| {H} gave {other} the {obj}. "Take it until you feel better," {he} said.
- {Other} took the {thing} and smiled. "You are so kind," said {other}.
| "Really?" asked {other}. "Yes," said {H}, "that is what friends are for."
- The next day, {other} came back with the {thing} and some sweet berries.
| In the evening, {other} felt much better and gave the {thing} back.
- "Your {thing} helped me," said {other}. "Now I want to help you too."
| They sat down side by side with the {obj} and told funny stories.
= plot rain
- But soon dark clouds came, and it began to rain.
| Then it began to rain. It rained and rained.
- {H} ran under a big tree with the {thing}. {He} was wet and cold.
| "Now I cannot play with my {thing}," said {H}. {He} felt sad.
- {An_other} was waiting there too. "I am so bored," said {other}.
| Soon {an_other} came to hide from the rain. "What can we do?" asked {other}.
- {H} looked at the {thing}. "Let us pretend that it is a {game}," {he} said.
| Then {H} had an idea. "My {thing} can be a {game}," {he} said. "Let us play!"
- {Other} laughed. "And the tree is our house," said {other}.
| "Yes!" said {other}. "And we can go all around the world."
- They played and laughed, and they did not think about the rain.
| They made up a long story about the {obj} and the big storm.
- At last, the sun came out. A bright rainbow was in the sky.
| When the rain stopped, they ran out with the {obj} and jumped over the puddles.
- "Now I like rainy days with my {thing}," said {H}.
| "That was the best game ever," said {other}. {H} hugged the {thing}.
= plot found
- "What a nice {thing}!" said {H}. "But it is not mine."
| {H} picked it up. "Who lost this {thing}?" {he} asked.
| {H} wanted to keep it. But then {he} thought, "Someone must miss this {thing}."
- First {he} met {an_other}. "Is this your {thing}?" asked {H}. "No, it is not," said {other}.
| {He} asked {an_other}. "I do not know this {thing}," said {other}. "Try to ask in the village."
- {H} walked on with the {thing}. {He} looked {s2} and {s3}, but no one was there.
| {H} did not give up. {He} walked over the hill and across the bridge.
- Then {he} saw {a_helper}. {Helper} was looking for something.
| At last, {he} came to {a_helper}. {Helper} looked very sad.
- "Is this your {obj}?" asked {H}. "Yes! I looked for it all day," said {helper}.
| "I lost my {obj}," said {helper}. "Here it is!" said {H}.
- {Helper} was so happy. "Thank you, {H}. You are very honest."
| {Helper} took the {thing} and smiled. "You did the right thing, {H}."
- "Let us play together," said {helper}. They played with the {thing} until the sun went down.
| To say thank you, {helper} gave {H} a sweet apple. They ate it next to the {thing}.
"""


def _templates() -> dict[str, list[str]]:
    sections = (part.strip().split("\n") for part in TEMPLATES.split("\n= ")[1:])
    return {lines[0]: lines[1:] for lines in sections}


PARTS: Final = _templates()
PLOTS: Final = [name for name in PARTS if name.startswith("plot ")]


def beats_of(plot: str) -> list[list[str]]:
    """List the beats of a plot, each with all its wordings."""
    return [beat.split("\n| ") for beat in "\n".join(PARTS[plot])[2:].split("\n- ")]
