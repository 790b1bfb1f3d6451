"""Image classification in the manner of torchvision's reference: argparse, SequentialLR of a
LinearLR warm-up and a cosine, GradScaler, an averaged model, DataLoader workers, resuming."""

import argparse

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset


def train_one_epoch(model, criterion, optimizer, data_loader, args, model_ema, scaler):
    for i, (image, target) in enumerate(data_loader):
        with torch.amp.autocast("cpu", enabled=False):
            loss = criterion(model(image), target)
        optimizer.zero_grad()
        if scaler is not None:
            scaler.scale(loss).backward()
            if args.clip_grad_norm is not None:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip_grad_norm)
            scaler.step(optimizer)
            scaler.update()
        else:
            loss.backward()
            optimizer.step()
        if i % 2 == 0:
            model_ema.update_parameters(model)


def build_scheduler(optimizer, args):
    main = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, T_max=args.epochs - args.lr_warmup_epochs, eta_min=args.lr_min
    )
    warmup = torch.optim.lr_scheduler.LinearLR(
        optimizer, start_factor=0.01, total_iters=args.lr_warmup_epochs
    )
    return torch.optim.lr_scheduler.SequentialLR(
        optimizer, schedulers=[warmup, main], milestones=[args.lr_warmup_epochs]
    )


def main(args):
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(64, 12), torch.randint(5, (64,)))
    loader = DataLoader(
        data,
        batch_size=16,
        num_workers=args.workers,
        multiprocessing_context=args.start_method if args.workers else None,
    )
    model = torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.ReLU(), torch.nn.Linear(16, 5))
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.5, momentum=0.9, weight_decay=2e-5, nesterov=True
    )
    scaler = torch.amp.GradScaler("cpu") if args.amp else None
    lr_scheduler = build_scheduler(optimizer, args)
    model_ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    start_epoch = 0
    if args.resume:
        checkpoint = torch.load(args.resume, map_location="cpu")
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        lr_scheduler.load_state_dict(checkpoint["lr_scheduler"])
        model_ema.load_state_dict(checkpoint["model_ema"])
        start_epoch = checkpoint["epoch"] + 1
    for epoch in range(start_epoch, args.stop_after or args.epochs):
        train_one_epoch(model, criterion, optimizer, loader, args, model_ema, scaler)
        lr_scheduler.step()
        print(f"Epoch: [{epoch}] lr: {lr_scheduler.get_last_lr()[0]:.6f}")
        if args.output:
            checkpoint = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "lr_scheduler": lr_scheduler.state_dict(),
                "model_ema": model_ema.state_dict(),
                "epoch": epoch,
            }
            torch.save(checkpoint, args.output)


def get_args_parser():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", default=6, type=int)
    parser.add_argument("-j", "--workers", default=0, type=int)
    parser.add_argument("--start-method", default="spawn")
    parser.add_argument("--lr-warmup-epochs", default=2, type=int)
    parser.add_argument("--lr-min", default=0.0, type=float)
    parser.add_argument("--clip-grad-norm", default=None, type=float)
    parser.add_argument("--amp", action="store_true")
    parser.add_argument("--stop-after", default=0, type=int)
    parser.add_argument("--resume", default="")
    parser.add_argument("--output", default="")
    return parser


if __name__ == "__main__":
    main(get_args_parser().parse_args())
