"""The Mithril cloud (earlier: FCP, ML Foundry): tasks on spot bids."""
