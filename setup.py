"Everything a build needs comes from settings.ini, so that nbdev and pip read one file."
import shlex
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=['='], interpolation=None)
config.read(here/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
words = lambda key: shlex.split(cfg[key])
readme = here/'README.md'

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'],
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else cfg['description'],
    long_description_content_type='text/markdown', keywords=cfg['keywords'],
    author=cfg['author'], url=cfg['git_url'], license='Apache-2.0',
    packages=find_packages(include=['xmodseg', 'xmodseg.*']), package_data={'xmodseg': ['weights/*']},
    python_requires='>=' + cfg['min_python'], install_requires=words('requirements'),
    extras_require={'notebooks': words('notebooks_requirements'), 'itk': words('itk_requirements'), 'augment': words('augment_requirements'),
                    'dev': words('dev_requirements') + words('notebooks_requirements') + words('augment_requirements')},
    classifiers=['Programming Language :: Python :: 3', 'Intended Audience :: Science/Research'],
    zip_safe=False)
