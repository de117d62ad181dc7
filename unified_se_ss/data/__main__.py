"""``python -m unified_se_ss.data``: fetch public data sets."""

import sys

from unified_se_ss.data.download import main

if __name__ == "__main__":
    sys.exit(main())
