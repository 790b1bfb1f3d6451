"""Reinforcement learning in CleanRL's manner: a dataclass of arguments, Adam over one agent, lr
annealed by writing ``param_groups[0]["lr"]`` once per iteration, minibatches in epochs."""

import argparse
import random

import torch
import torch.nn as nn
import torch.optim as optim
from torch.distributions.categorical import Categorical


def parse_args():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=2.5e-3)
    parser.add_argument("--num-iterations", type=int, default=5)
    parser.add_argument("--update-epochs", type=int, default=2)
    parser.add_argument("--anneal-lr", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--save", default="")
    return parser.parse_args()


def layer_init(layer, std=2**0.5):
    torch.nn.init.orthogonal_(layer.weight, std)
    torch.nn.init.constant_(layer.bias, 0.0)
    return layer


class Agent(nn.Module):
    def __init__(self):
        super().__init__()
        self.critic = nn.Sequential(layer_init(nn.Linear(4, 8)), nn.Tanh(), nn.Linear(8, 1))
        self.actor = nn.Sequential(layer_init(nn.Linear(4, 8)), nn.Tanh(), nn.Linear(8, 2))

    def get_action_and_value(self, x, action):
        probs = Categorical(logits=self.actor(x))
        return probs.log_prob(action), probs.entropy(), self.critic(x)


if __name__ == "__main__":
    args = parse_args()
    random.seed(args.seed)
    torch.manual_seed(args.seed)
    agent = Agent()
    optimizer = optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)
    for iteration in range(1, args.num_iterations + 1):
        if args.anneal_lr:
            frac = 1.0 - (iteration - 1.0) / args.num_iterations
            lrnow = frac * args.learning_rate
            optimizer.param_groups[0]["lr"] = lrnow
        obs, actions = torch.randn(32, 4), torch.randint(2, (32,))
        returns, old_logprob = torch.randn(32), torch.full((32,), -0.7)
        for _ in range(args.update_epochs):
            for mb in torch.randperm(32).chunk(4):
                logprob, entropy, value = agent.get_action_and_value(obs[mb], actions[mb])
                ratio = (logprob - old_logprob[mb]).exp()
                advantage = returns[mb] - value.detach().flatten()
                pg_loss = torch.max(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2)).mean()
                v_loss = 0.5 * ((value.flatten() - returns[mb]) ** 2).mean()
                loss = pg_loss - 0.01 * entropy.mean() + 0.5 * v_loss
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
                optimizer.step()
    print("charts/learning_rate", optimizer.param_groups[0]["lr"])
    if args.save:
        torch.save({"model": agent.state_dict(), "optimizer": optimizer.state_dict()}, args.save)
